"""The next sample: what is known of each image before anybody labels it, and which image is labelled next."""
