//! Moving chunks: serving, following, scheduling, writing, resuming.
