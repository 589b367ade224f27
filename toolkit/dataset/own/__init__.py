"""Data of one's own: Ultralytics' and COCO datasets, brought into LTDv2's layout by links."""
