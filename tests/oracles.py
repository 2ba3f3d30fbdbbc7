"""Reference loops for assignment, losses and suppression, written only from the papers.

The tests compare the vectorized functions with these slow ones. Boxes are x1, y1, x2, y2.
"""

import math

import numpy as np

EPSILON = 1e-6  # floor of a union, an area or an enclosing area


def area(box):
    return float(box[2] - box[0]) * float(box[3] - box[1])


def intersection(a, b):
    width = min(float(a[2]), float(b[2])) - max(float(a[0]), float(b[0]))
    height = min(float(a[3]), float(b[3])) - max(float(a[1]), float(b[1]))
    return width * height if width > 0 and height > 0 else 0.0


def union(a, b):
    return max(area(a) + area(b) - intersection(a, b), EPSILON)


def iou(a, b):
    return intersection(a, b) / union(a, b)


def iof(a, b):
    return intersection(a, b) / max(area(a), EPSILON)


def giou(a, b):
    """Iou minus the fraction of the enclosing box that neither box covers.

    Rezatofighi et al., https://arxiv.org/abs/1902.09630.
    """
    low = min(float(a[0]), float(b[0])), min(float(a[1]), float(b[1]))
    high = max(float(a[2]), float(b[2])), max(float(a[3]), float(b[3]))
    enclosing = max((high[0] - low[0]) * (high[1] - low[1]), EPSILON)
    return iou(a, b) - (enclosing - union(a, b)) / enclosing


def quality_focal(logit, quality, beta=2.0):
    """Equation 5 of Li et al., https://arxiv.org/abs/2006.04388.

    -|y - s|^beta ((1-y) log(1-s) + y log s)
    """
    score = 1 / (1 + math.exp(-logit))
    log_score = -math.log1p(math.exp(-logit))
    log_rest = -math.log1p(math.exp(logit))
    entropy = -((1 - quality) * log_rest + quality * log_score)
    return abs(quality - score) ** beta * entropy


def distribution_focal(logits, target):
    """Equation 6 of Li et al., https://arxiv.org/abs/2006.04388.

    -((y_right - y) log S_left + (y - y_left) log S_right)
    """
    total = sum(math.exp(logit) for logit in logits)
    left = min(int(target), len(logits) - 2)
    log_left = logits[left] - math.log(total)
    log_right = logits[left + 1] - math.log(total)
    return -((left + 1 - target) * log_left + (target - left) * log_right)


def mean_plus_deviation(values):
    """Mean plus the unbiased standard deviation; nan of a single value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return math.nan
    return mean + math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def atss(priors, gt_boxes, valid, ignore, *, topk, anchor_scale, ignore_threshold):
    """Algorithm 1 of Zhang et al., https://arxiv.org/abs/1912.02424, with ignore regions.

    Returns:
      Slot per prior (-1 background, -2 ignored) and the iou of its anchor with that slot's box.
    """
    centers, strides = priors.centers, priors.strides
    num_priors = len(centers)
    anchors = []
    for (x, y), stride in zip(centers.tolist(), strides.tolist()):
        half = anchor_scale * stride / 2
        anchors.append((x - half, y - half, x + half, y + half))

    ignored = np.zeros(num_priors, bool)
    if ignore_threshold > 0:
        for region in gt_boxes[ignore]:
            ignored |= [iof(anchor, region) > ignore_threshold for anchor in anchors]

    best_slot, best_iou = [-1] * num_priors, [-1.0] * num_priors
    for slot in np.flatnonzero(valid):
        box = gt_boxes[slot]
        # In float32 and with a stable sort, because the order of equal values is part of the rule.
        center = (box[:2] + box[2:]) / np.float32(2)
        distance = np.sqrt(np.sum((centers - center) ** 2, axis=-1, dtype=np.float32))
        distance = np.where(ignored, np.float32(1e8), distance)
        candidates, start = [], 0
        for size in priors.level_sizes:
            nearest = np.argsort(distance[start : start + size], kind="stable")[:topk]
            candidates += (start + nearest).tolist()
            start += size
        ious = [iou(anchors[prior], box) for prior in candidates]
        threshold = mean_plus_deviation(ious)
        for prior, overlap in zip(candidates, ious):
            x, y = centers[prior]
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= threshold and inside and overlap > best_iou[prior]:
                best_slot[prior], best_iou[prior] = int(slot), overlap
    for prior in np.flatnonzero(ignored):
        if best_slot[prior] == -1:
            best_slot[prior] = -2
    return np.array(best_slot), np.array(best_iou)


def dynamic_soft_label(
    priors,
    truth,
    class_logits,
    predicted,
    *,
    topk,
    iou_factor,
    ignore_threshold,
    priors_of_any_box,
):
    """SimOTA (Ge et al., https://arxiv.org/abs/2107.08430) and the soft class cost of NanoDet-Plus.

    `priors_of_any_box` selects the candidates of the original. Otherwise the candidates are the
    priors inside the box, or the nearest prior if there is none and the box has an area.

    Returns:
      Slot per prior (-1 background, -2 ignored) and the iou of its prediction with that slot's box.
    """
    every, slots = range(len(priors.centers)), np.flatnonzero(truth.valid).tolist()
    candidates = {}
    for slot in slots:
        left, top, right, bottom = truth.boxes[slot]
        inside = [left < x < right and top < y < bottom for x, y in priors.centers]
        candidates[slot] = [prior for prior in every if inside[prior]]
    if priors_of_any_box:
        anywhere = sorted(set().union(*candidates.values()))
        candidates = {slot: anywhere for slot in slots}
    for slot in slots:
        box = truth.boxes[slot]
        if not candidates[slot] and not priors_of_any_box and area(box) > 0:
            # In float32, because the order of equal values is part of the rule.
            offset = priors.centers - (box[:2] + box[2:]) / np.float32(2)
            distance = np.sum(offset**2, axis=-1, dtype=np.float32)
            candidates[slot] = [int(np.argmin(distance))]

    costs, overlaps, takers = {}, {}, {}
    for slot in slots:
        for prior in candidates[slot]:
            overlap = iou(predicted[prior], truth.boxes[slot])
            quality = [0.0] * class_logits.shape[1]
            quality[truth.labels[slot]] = overlap
            cost = sum(map(quality_focal, class_logits[prior].tolist(), quality))
            costs[slot, prior] = cost - iou_factor * math.log(overlap + 1e-7)
            overlaps[slot, prior] = overlap
        largest = sorted((overlaps[slot, prior] for prior in candidates[slot]), reverse=True)[:topk]
        count = max(int(sum(largest)), 1)
        cheapest = sorted(candidates[slot], key=lambda prior: costs[slot, prior])
        for prior in cheapest[:count]:
            takers.setdefault(prior, []).append(slot)

    best_slot, best_iou = [-1] * len(every), [-1.0] * len(every)
    for prior, claims in takers.items():
        if len(claims) > 1:  # all boxes compete then, even if they do not claim it
            claims = [slot for slot in slots if prior in candidates[slot]]
        # The first of equal values, as from min and sorted.
        best_slot[prior] = min(claims, key=lambda slot: costs[slot, prior])
        best_iou[prior] = overlaps[best_slot[prior], prior]
    if ignore_threshold > 0:
        for prior in every:
            covered = [iof(predicted[prior], region) for region in truth.boxes[truth.ignore]]
            if best_slot[prior] == -1 and max(covered, default=0) > ignore_threshold:
                best_slot[prior] = -2
    return np.array(best_slot), np.array(best_iou)


def non_maximum_suppression(boxes, scores, *, score_threshold, iou_threshold, max_detections):
    """Greedy suppression within each class, over all pairs above the score threshold.

    Returns:
      (prior, class) of each detection, best first.
    """
    num_priors, num_classes = scores.shape
    pairs = [
        (prior, label)
        for prior in range(num_priors)
        for label in range(num_classes)
        if scores[prior, label] > np.float32(score_threshold)
    ]
    pairs.sort(key=lambda pair: -scores[pair])  # stable: lower prior first, then lower class
    kept = []
    for prior, label in pairs:
        if len(kept) == max_detections:
            break
        rivals = (other for other, its_label in kept if its_label == label)
        if all(iou(boxes[prior], boxes[other]) <= iou_threshold for other in rivals):
            kept.append((prior, label))
    return kept
