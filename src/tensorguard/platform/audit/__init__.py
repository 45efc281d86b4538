"""The audit trail: one hash chain per tenant that covers every field."""
