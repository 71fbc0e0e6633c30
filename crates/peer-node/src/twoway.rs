//! Two-way shares: version vectors, conflicts, kept deletions.
