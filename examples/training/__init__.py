"""What ``train_lm.py`` and ``train_image.py`` share: one story to a file."""
