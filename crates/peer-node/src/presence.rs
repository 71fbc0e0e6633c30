//! Who is there and how to reach them: multicast DNS, beacon, seeds.
