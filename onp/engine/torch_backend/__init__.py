"""The engine in torch and oneDNN, on any device that torch has; on CPUs with Winograd and per-tap products."""
