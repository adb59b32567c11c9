"""The one loop for all phases: steps, precision, processes, states to go on from, console, tracking."""
