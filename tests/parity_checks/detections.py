def detections_check(path, weights, images):
    return None
