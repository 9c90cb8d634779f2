"""Measurements: Threadmill beside bare LangGraph and a naive Celery task."""
