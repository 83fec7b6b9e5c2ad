"""Training: degradation of clean clips, packed training data, and the training stages."""
