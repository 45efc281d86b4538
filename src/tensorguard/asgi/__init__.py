"""What both FastAPI apps share: problem documents, request context, body limits."""
