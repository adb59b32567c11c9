"""What a training sees: batches, preprocessing, augmentation of images, corruption of masks, lesion-free tissue."""
