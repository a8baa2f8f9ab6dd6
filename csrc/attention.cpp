// Attention over the paged pool, for prefill and decode in one batch.
//
// Keys are walked in tiles of 64 and tiles in segments of 512, both counted from position 0. Every
// segment starts afresh and segments are merged in order, so a long context may be computed by many
// threads at once, or by one, with the same bits.
// A piece is some neighbouring tokens of a span with all query heads that share a kv head. Where a
// span has too few rows to spread, each of its segments is a piece of its own, merged afterwards.
// Elsewhere: rows against a tile (attention_tile.h), the memory that a piece works in
// (attention_work.h), the pool's layout (kernels.h, kv_cache.h).
#include "attention_tile.h"
#include "attention_work.h"
#include "kernels.h"
#include "kv_cache.h"
#include "simd.h"
#include "thread_pool.h"

namespace baton::BATON_ISA {
namespace {

constexpr int kSegmentKeys = 512;

// Rows of a piece: enough to use each tile several times while it is in the first-level cache, few
// enough to leave room for it there.
constexpr int kPieceRows = 48;

// With so few tiles of rows, memory is slower than arithmetic.
constexpr int kFewTiles = 2;

BATON_INLINE int smaller(int a, int b) { return a < b ? a : b; }
BATON_INLINE int larger(int a, int b) { return a > b ? a : b; }

// How a span is cut. Pieces are numbered kv head by kv head, so that threads working side by side
// share its keys, and the longest first: from the last tokens to the first.
struct SpanCut {
  int first_piece;
  int num_parts;      // parts of the span's tokens; 1 if its segments are pieces
  int first_segment;  // segments that are pieces: [first_segment, first_segment + num_segments)
  int num_segments;   // 0 if a piece walks all of its segments
  int first_partial;
};

struct Job {
  const AttentionArgs& args;
  const KvLayer& kv;
  int rows_per_token;  // query heads of a kv head
  int tokens_per_piece;
  SpanCut* cuts;  // num_spans
  int num_pieces;
  int num_partials;  // one for each piece that is a segment
  uint8_t* workspaces;
  int64_t workspace_bytes;
  uint8_t* partials;
  int64_t partial_bytes;

  int rows_per_piece() const { return rows_per_token * tokens_per_piece; }

  Workspace workspace(int thread) const {
    Carver carver(workspaces + thread * workspace_bytes);
    return Workspace::carve(carver, rows_per_piece(), kv.head_dim);
  }
  Partial partial(int index) const {
    Carver carver(partials + index * partial_bytes);
    return Partial::carve(carver, rows_per_piece(), kv.head_dim);
  }
};

// Query rows of tokens [token_begin, token_end) of a span: row = token * rows_per_token + head.
struct Piece {
  const Span& span;
  int kv_head;
  int token_begin, token_end;
};

BATON_INLINE int first_visible(const Span& span, int token, int window) {
  const int position = span.context_len - span.num_tokens + token;
  return window > 0 && position >= window ? position - window + 1 : 0;
}

BATON_INLINE int end_visible(const Span& span, int token) {
  return span.context_len - span.num_tokens + token + 1;
}

// Rows are computed in tiles of up to kMaxRows, as even as can be.
struct RowTiles {
  int num_rows;
  BATON_INLINE int num() const { return (num_rows + kMaxRows - 1) / kMaxRows; }
  BATON_INLINE int begin(int tile) const { return num_rows * tile / num(); }
};

BATON_INLINE void prefetch(const void* from, int64_t num_bytes) {
  const char* line = static_cast<const char*>(from);
  for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch(line + i);
}

// Rounds a row's query into its place in a tile of `num` rows.
BATON_INLINE void pack_query(const float* q, int dim, int num, uint16_t* pairs) {
  for (int d = 0; d < dim; d += kLanes) {
    uint16_t rounded[kLanes];
    store_bf16(rounded, load(q + d));
    for (int i = 0; i < kLanes; i += 2)
      std::memcpy(pairs + (d + i) * num, rounded + i, 2 * sizeof(uint16_t));
  }
}

void load_queries(const Job& job, const Piece& piece, const Workspace& work) {
  const int dim = job.kv.head_dim, window = job.args.window;
  const int64_t first_column = int64_t(piece.kv_head) * job.rows_per_token * dim;
  const RowTiles tiles = {(piece.token_end - piece.token_begin) * job.rows_per_token};
  // Rows lie far apart, so their cache misses had better overlap.
  for (int token = piece.token_begin; token < piece.token_end; ++token)
    prefetch(job.args.q + (piece.span.start + token) * job.args.q_stride + first_column,
             job.rows_per_token * dim * int64_t(sizeof(float)));
  int token = piece.token_begin, head = 0;
  for (int tile = 0; tile < tiles.num(); ++tile) {
    const int begin = tiles.begin(tile), end = tiles.begin(tile + 1);
    for (int row = begin; row < end; ++row) {
      const float* q = job.args.q + (piece.span.start + token) * job.args.q_stride;
      pack_query(q + first_column + head * dim, dim, end - begin,
                 work.q + int64_t(begin) * dim + 2 * (row - begin));
      work.first[row] = first_visible(piece.span, token, window);
      work.end[row] = end_visible(piece.span, token);
      if (++head == job.rows_per_token) ++token, head = 0;
    }
  }
}

BATON_INLINE void expand(const uint8_t* from, int num, uint16_t* to) {
  const int8_t* values = reinterpret_cast<const int8_t*>(from);
  for (int i = 0; i < num; i += kLanes) store_bf16(to + i, load_s8(values + i));
}

// The tile at `begin` as somebody who sees keys [first, end) may read it.
KeyTile find_tile(const Job& job, const Piece& piece, const Workspace& work, int begin, int first,
                  int end) {
  const KvLayer& kv = job.kv;
  const int dim = kv.head_dim;
  const bool is_int8 = kv.form == KvForm::kInt8;
  KeyTile tile;
  tile.begin = begin;
  tile.key_scales = is_int8 ? work.key_scales : nullptr;
  tile.value_scales = is_int8 ? work.value_scales : nullptr;
  bool is_visible[kTileGroups];
  int any = 0;
  for (int g = 0; g < kTileGroups; ++g) {
    const int position = begin + g * kKeyGroup;
    is_visible[g] = position + kKeyGroup > first && position < end;
    if (!is_visible[g]) continue;
    any = g;
    const int64_t block = piece.span.blocks[position / kv.block_size];
    const int offset = position % kv.block_size;
    const uint8_t* keys = keys_at(kv, block, piece.kv_head);
    const uint8_t* values = values_at(kv, block, piece.kv_head);
    const int64_t skipped = int64_t(offset) * dim * element_bytes(kv.form);
    if (!is_int8) {
      tile.keys[g] = reinterpret_cast<const uint16_t*>(keys + skipped);
      tile.values[g] = reinterpret_cast<const uint16_t*>(values + skipped);
      continue;
    }
    const int num = kKeyGroup * dim;
    expand(keys + skipped, num, work.keys + g * num);
    expand(values + skipped, num, work.values + g * num);
    tile.keys[g] = work.keys + g * num;
    tile.values[g] = work.values + g * num;
    const int at = g * kKeyGroup;
    store(work.key_scales + at, load(key_scales_at(kv, block, piece.kv_head) + offset));
    store(work.value_scales + at, load(value_scales_at(kv, block, piece.kv_head) + offset));
  }
  for (int g = 0; g < kTileGroups; ++g) {
    if (is_visible[g]) continue;
    tile.keys[g] = tile.keys[any];
    tile.values[g] = tile.values[any];
  }
  return tile;
}

// Where the tile at `begin` lies; past the end, where the next kv head begins, or after the last
// the next span: with few rows a thread's next piece is most often that.
NextTile find_next_tile(const Job& job, const Piece& piece, int begin, int end) {
  const KvLayer& kv = job.kv;
  const Span* span = &piece.span;
  int head = piece.kv_head;
  if (begin >= end) {
    if (++head == kv.num_kv_heads) {
      head = 0;
      if (span + 1 < job.args.spans + job.args.num_spans) ++span;
    }
    begin = first_visible(*span, 0, job.args.window) / kTileKeys * kTileKeys;
    end = end_visible(*span, 0);
  }
  NextTile next;
  next.element_bytes = element_bytes(kv.form);
  for (int g = 0; g < kTileGroups; ++g) {
    const int position = smaller(begin + g * kKeyGroup, end - 1);
    const int64_t block = span->blocks[position / kv.block_size];
    const int64_t skipped = int64_t(position % kv.block_size / kKeyGroup) * kKeyGroup *
                            kv.head_dim * next.element_bytes;
    next.keys[g] = keys_at(kv, block, head) + skipped;
    next.values[g] = values_at(kv, block, head) + skipped;
    if (kv.form != KvForm::kInt8) continue;
    const int offset = position % kv.block_size;
    __builtin_prefetch(key_scales_at(kv, block, head) + offset);
    __builtin_prefetch(value_scales_at(kv, block, head) + offset);
  }
  return next;
}

template <int R = kMaxRows, class Next>
BATON_INLINE void attend_rows(int num, const KeyTile& tile, const Next& next, const Rows& rows,
                              int row) {
  if (num == R) {
    attend<R>(tile, next, rows, row);
  } else if constexpr (R > 1) {
    attend_rows<R - 1>(num, tile, next, rows, row);
  }
}

// All rows of a piece over one segment, into `result`.
void run_segment(const Job& job, const Piece& piece, const Workspace& work, int segment,
                 const Partial& result) {
  const int num_rows = (piece.token_end - piece.token_begin) * job.rows_per_token;
  const int dim = job.kv.head_dim;
  for (int row = 0; row < num_rows; ++row) result.peak[row] = kMinusInfinity;
  for (int i = 0; i < num_rows * kLanes; i += kLanes) store(work.sums + i, zero());
  for (int i = 0; i < num_rows * dim; i += kLanes) store(result.out + i, zero());
  const Rows rows = {
      dim,       job.args.scale * kLog2E, work.q, work.first, work.end, result.peak, work.sums,
      result.out};

  const int first = work.first[0], end = work.end[num_rows - 1];
  const int begin_key = larger(segment * kSegmentKeys, first / kTileKeys * kTileKeys);
  const int end_key = smaller((segment + 1) * kSegmentKeys, end);
  const RowTiles tiles = {num_rows};
  for (int key = begin_key; key < end_key; key += kTileKeys) {
    const KeyTile tile = find_tile(job, piece, work, key, first, end);
    int tile_of_rows = 0;
    if (tiles.num() <= kFewTiles) {
      const NextTile next = find_next_tile(job, piece, key + kTileKeys, end_key);
      attend_rows(tiles.begin(1), tile, next, rows, 0);
      tile_of_rows = 1;
    }
    for (; tile_of_rows < tiles.num(); ++tile_of_rows) {
      const int row = tiles.begin(tile_of_rows), row_end = tiles.begin(tile_of_rows + 1);
      attend_rows(row_end - row, tile, NoTile{}, rows, row);
    }
  }
  for (int row = 0; row < num_rows; ++row) result.total[row] = sum(load(work.sums + row * kLanes));
}

// Adds the next segment of a row to what came before it.
void merge_row(const Partial& whole, const Partial& next, int row, int dim, float log2_scale) {
  if (next.peak[row] == kMinusInfinity) return;
  float* out = whole.out + int64_t(row) * dim;
  const float* more = next.out + int64_t(row) * dim;
  if (whole.peak[row] == kMinusInfinity) {
    whole.peak[row] = next.peak[row];
    whole.total[row] = next.total[row];
    for (int d = 0; d < dim; d += kLanes) store(out + d, load(more + d));
    return;
  }
  const float peak = whole.peak[row] > next.peak[row] ? whole.peak[row] : next.peak[row];
  float factors[kLanes] = {(whole.peak[row] - peak) * log2_scale,
                           (next.peak[row] - peak) * log2_scale};
  store(factors, exp2_of_weight(load(factors)));
  const F32 old_factor = splat(factors[0]), new_factor = splat(factors[1]);
  for (int d = 0; d < dim; d += kLanes)
    store(out + d, fma(load(more + d), new_factor, mul(load(out + d), old_factor)));
  whole.total[row] = next.total[row] * factors[1] + whole.total[row] * factors[0];
  whole.peak[row] = peak;
}

void write_rows(const Job& job, const Piece& piece, const Partial& whole) {
  const int dim = job.kv.head_dim;
  int row = 0;
  for (int token = piece.token_begin; token < piece.token_end; ++token) {
    float* out = job.args.out + (piece.span.start + token) * job.args.out_stride +
                 int64_t(piece.kv_head) * job.rows_per_token * dim;
    for (int head = 0; head < job.rows_per_token; ++head, ++row) {
      const F32 total = splat(whole.total[row]);
      for (int d = 0; d < dim; d += kLanes)
        store(out + head * dim + d, div(load(whole.out + row * dim + d), total));
    }
  }
}

void merge_rows(const Job& job, const Partial& whole, const Partial& next, int num_rows) {
  const float log2_scale = job.args.scale * kLog2E;
  for (int row = 0; row < num_rows; ++row) merge_row(whole, next, row, job.kv.head_dim, log2_scale);
}

// A piece over all of its segments, one after the other.
void run_piece(const Job& job, const Piece& piece, const Workspace& work) {
  load_queries(job, piece, work);
  const int num_rows = (piece.token_end - piece.token_begin) * job.rows_per_token;
  const int first = work.first[0] / kSegmentKeys;
  const int last = (work.end[num_rows - 1] - 1) / kSegmentKeys;
  run_segment(job, piece, work, first, work.whole);
  for (int segment = first + 1; segment <= last; ++segment) {
    run_segment(job, piece, work, segment, work.segment);
    merge_rows(job, work.whole, work.segment, num_rows);
  }
  write_rows(job, piece, work.whole);
}

// The span that a piece belongs to: the last one that starts at or before it.
int find_span(const Job& job, int piece) {
  int low = 0, high = job.args.num_spans;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (job.cuts[middle].first_piece <= piece ? low : high) = middle;
  }
  return low;
}

void run_numbered(void* opaque, int number, int thread) {
  const Job& job = *static_cast<const Job*>(opaque);
  const int index = find_span(job, number);
  const Span& span = job.args.spans[index];
  const SpanCut& cut = job.cuts[index];
  const int own = number - cut.first_piece;
  const Workspace work = job.workspace(thread);
  if (cut.num_segments > 0) {
    const Piece piece = {span, own / cut.num_segments, 0, span.num_tokens};
    const int segment = cut.first_segment + own % cut.num_segments;
    load_queries(job, piece, work);
    run_segment(job, piece, work, segment, job.partial(cut.first_partial + own));
    return;
  }
  const int part = cut.num_parts - 1 - own % cut.num_parts;
  const int begin = part * job.tokens_per_piece;
  const int end = smaller(begin + job.tokens_per_piece, span.num_tokens);
  run_piece(job, {span, own / cut.num_parts, begin, end}, work);
}

// Piece `number` is a kv head of a span: merges its segments, if they were pieces.
void merge_numbered(void* opaque, int number, int) {
  const Job& job = *static_cast<const Job*>(opaque);
  const Span& span = job.args.spans[number / job.kv.num_kv_heads];
  const SpanCut& cut = job.cuts[number / job.kv.num_kv_heads];
  if (cut.num_segments == 0) return;
  const int kv_head = number % job.kv.num_kv_heads;
  const int first = cut.first_partial + kv_head * cut.num_segments;
  const Partial whole = job.partial(first);
  for (int i = 1; i < cut.num_segments; ++i)
    merge_rows(job, whole, job.partial(first + i), span.num_tokens * job.rows_per_token);
  write_rows(job, {span, kv_head, 0, span.num_tokens}, whole);
}

void cut_spans(Job& job) {
  const int num_kv_heads = job.kv.num_kv_heads;
  for (int i = 0; i < job.args.num_spans; ++i) {
    const Span& span = job.args.spans[i];
    SpanCut& cut = job.cuts[i];
    cut.first_piece = job.num_pieces;
    cut.first_partial = job.num_partials;
    cut.num_parts = (span.num_tokens + job.tokens_per_piece - 1) / job.tokens_per_piece;
    cut.first_segment = first_visible(span, 0, job.args.window) / kSegmentKeys;
    const int num_segments = (span.context_len - 1) / kSegmentKeys + 1 - cut.first_segment;
    const bool is_split = cut.num_parts == 1 && num_segments > 1;
    cut.num_segments = is_split ? num_segments : 0;
    job.num_pieces += num_kv_heads * (is_split ? num_segments : cut.num_parts);
    job.num_partials += is_split ? num_kv_heads * num_segments : 0;
  }
}

}  // namespace

void attention(const AttentionArgs& args, const KvLayer& kv, ThreadPool& threads) {
  if (args.num_spans == 0) return;
  const int rows_per_token = args.num_heads / kv.num_kv_heads;
  Job job = {args,
             kv,
             rows_per_token,
             larger(1, kPieceRows / rows_per_token),
             nullptr,
             0,
             0,
             nullptr,
             0,
             nullptr,
             0};

  static thread_local Scratch cuts_memory, memory;
  Carver cuts(cuts_memory.reserve(args.num_spans * int64_t(sizeof(SpanCut))));
  job.cuts = cuts.take<SpanCut>(args.num_spans);
  cut_spans(job);

  Carver workspace(nullptr), partial(nullptr);
  Workspace::carve(workspace, job.rows_per_piece(), kv.head_dim);
  Partial::carve(partial, job.rows_per_piece(), kv.head_dim);
  job.workspace_bytes = workspace.used();
  job.partial_bytes = partial.used();
  const int64_t workspaces_bytes = threads.num_threads() * job.workspace_bytes;
  job.workspaces = memory.reserve(workspaces_bytes + job.num_partials * job.partial_bytes);
  job.partials = job.workspaces + workspaces_bytes;

  threads.run(job.num_pieces, run_numbered, &job);
  if (job.num_partials > 0) threads.run(args.num_spans * kv.num_kv_heads, merge_numbered, &job);
}

}  // namespace baton::BATON_ISA
