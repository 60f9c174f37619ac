// The products of dots.cpp (emulated.py).
#define PLUS(x, y) add_sums(x, y, y)
#define WIDE(x) widen(x, x, x)
NBSNN_DOTS(pairs_256, , Lanes<32>, 2, run.apart, load_lanes<32>, each_lane<32>, add_pairs, WIDE, PLUS, store_lanes)
NBSNN_DOTS(pairs_512, , Lanes<64>, 4, run.apart, load_lanes<64>, each_lane<64>, add_pairs, WIDE, PLUS, store_lanes)
NBSNN_DOTS(dots_256, , Lanes<32>, 2, run.n, load_lanes<32>, each_lane<32>, add_dots, SAME, PLUS, store_lanes)
NBSNN_DOTS(dots_512, , Lanes<64>, 4, run.n, load_lanes<64>, each_lane<64>, add_dots, SAME, PLUS, store_lanes)
