"""Where changes of the backing tree are heard. Each watcher is a source of raw events with positions."""
