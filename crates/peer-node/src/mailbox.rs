//! Store and re-send: parcels, outbox, inbox, keepers, receipts.
