//! What is shared, here and elsewhere: shares, their indexes, rights, names and search.
