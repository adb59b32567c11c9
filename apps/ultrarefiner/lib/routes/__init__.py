"""What the server adds or repairs: routes, and the doors in front of them."""
