"""Everything about frames in time: reading, shots, segments, scaling, colour, stitching, writing."""
