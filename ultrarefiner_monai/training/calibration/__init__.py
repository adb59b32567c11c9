"""How a probability becomes a mask, chosen on selection images of all sets."""
