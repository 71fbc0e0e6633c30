//! Printers: queue, durable spool, outputs, accounting, and the IPP service of each.
