"""What is trained: networks, losses and figures of phase 1, 2 and 3, with simulated clicks."""
