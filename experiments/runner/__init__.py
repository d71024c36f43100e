"""What the studies share: runs side by side on a device, their records, corpora, equal budgets."""
