"""Quick learning: seconds after a save the champion's mask decoder is tuned on cached features of all corrections."""
