"""What is asked over HTTP: the app's routes, and the doors in front of all routes."""
