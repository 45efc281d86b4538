"""What operators see: logs without secrets, request ids, metrics. Nothing here is a guess."""
