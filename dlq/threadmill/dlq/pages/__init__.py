"""Operator pages inside Flower: dead letters, threads and tenants, in Flower's own frame.

They need the extra `flower`. What an operator does on them goes through `threadmill.dlq.Desk`.
"""

from threadmill.dlq.pages.application import add_pages, template_loader

__all__ = ["add_pages", "template_loader"]
