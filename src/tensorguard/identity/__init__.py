"""Who a device is: a fleet CA per tenant, bounded CSRs, and chains that check or raise."""
