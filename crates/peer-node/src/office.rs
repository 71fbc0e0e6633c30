//! Who belongs: signed records, invites, groups, gossip.
