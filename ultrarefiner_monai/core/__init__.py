"""What every folder uses: types and errors, the letterbox, files written whole, threads, bounded caches."""
