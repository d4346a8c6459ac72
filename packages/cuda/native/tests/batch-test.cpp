// Batches of copies to device memory: rows of several buffers into several memories by one call.
#include <algorithm>
#include <cstring>
#include <random>

#include "test.h"

using namespace test;

namespace {

using Piece = ckpt_h2d_piece;

// Memories that pieces are put into one behind another, with what they have to hold in the end.
struct Targets {
  std::vector<uint32_t> handles;
  std::vector<std::vector<uint8_t>> expected;
  std::vector<uint64_t> used;

  explicit Targets(uint32_t count, uint64_t bytes) : used(count, 0) {
    for (uint32_t i = 0; i < count; i++) {
      handles.push_back(new_memory(bytes));
      OK(ckpt_memory_fill(handles.back(), 0, bytes, 0xab));
      expected.emplace_back(bytes, 0xab);
    }
  }

  void check() const {
    for (size_t i = 0; i < handles.size(); i++) {
      CHECK_EQ(memory_sha256(handles[i], 0, expected[i].size()), sha256_of(expected[i]));
      OK(ckpt_memory_free(handles[i]));
    }
  }
};

// Rows of a random form, out of content that lies in the buffer, into what is free of a memory; false: it has no room for them.
bool add_piece(std::mt19937_64& random, Targets& targets, uint32_t buffer, const std::vector<uint8_t>& content,
               std::vector<Piece>& pieces) {
  const auto below = [&](uint64_t end) { return random() % end; };
  const uint64_t unit = 1ull << below(5);
  const uint64_t target = below(targets.handles.size());
  Piece piece{targets.handles[target], buffer, 0, 0, 0, 0, 0, 0};
  piece.width = unit * (1 + below(below(8) == 0 ? 600 : 40));
  piece.height = below(3) == 0 ? 1 : 1 + below(100);
  piece.buffer_pitch = piece.width + unit * below(400);
  piece.height = std::min(piece.height, (content.size() - piece.width) / piece.buffer_pitch + 1);
  piece.memory_pitch = piece.width + (below(2) == 0 ? 0 : unit * below(10));
  const uint64_t from_bytes = (piece.height - 1) * piece.buffer_pitch + piece.width;
  const uint64_t to_bytes = (piece.height - 1) * piece.memory_pitch + piece.width;
  uint64_t& used = targets.used[target];
  piece.memory_offset = (used + unit - 1) / unit * unit;
  if (piece.memory_offset + to_bytes > targets.expected[target].size()) return false;
  piece.buffer_offset = below((content.size() - from_bytes) / unit + 1) * unit;
  used = piece.memory_offset + to_bytes;
  for (uint64_t row = 0; row < piece.height; row++) {
    memcpy(targets.expected[target].data() + piece.memory_offset + row * piece.memory_pitch,
           content.data() + piece.buffer_offset + row * piece.buffer_pitch, piece.width);
  }
  if (piece.height == 1) piece.memory_pitch = piece.buffer_pitch = below(2);  // not looked at
  pieces.push_back(piece);
  return true;
}

}  // namespace

TEST("a batch: rows of every alignment, width and pitch land where they should and nowhere else") {
  std::mt19937_64 random(7);
  const std::vector<uint8_t> contents[] = {random_bytes(9'000'001, 1), random_bytes(2'500'000, 2)};
  const uint32_t buffers[] = {buffer_with(contents[0]), buffer_with(contents[1])};
  const uint32_t stream = new_stream();
  for (int round = 0; round < 5; round++) {
    Targets targets(3, 4'000'003);
    std::vector<Piece> pieces;
    while (add_piece(random, targets, buffers[pieces.size() % 2], contents[pieces.size() % 2], pieces)) continue;
    CHECK(pieces.size() > 70);
    OK(ckpt_copy_h2d_batch(stream, pieces.data(), static_cast<uint32_t>(pieces.size())));
    OK(ckpt_stream_sync(stream, 0, 10000));
    targets.check();
  }
  OK(ckpt_stream_destroy(stream));
  for (const uint32_t buffer : buffers) OK(ckpt_buffer_free(buffer));
}

TEST("a batch out of a file's mapping: CHANGED when its lease is broken, and that stays with the stream") {
  std::mt19937_64 random(8);
  const std::vector<uint8_t> content = random_bytes(3'000'000, 1);
  TempFile source(content);
  const uint32_t file = open_file(source.path());
  const uint32_t mapped = mapped_buffer(file);
  const uint32_t stream = new_stream();
  Targets targets(1, 4'000'000);
  std::vector<Piece> pieces;
  while (add_piece(random, targets, mapped, content, pieces)) continue;
  const uint32_t count = static_cast<uint32_t>(pieces.size());
  OK(ckpt_copy_h2d_batch(stream, pieces.data(), count));
  OK(ckpt_stream_sync(stream, 0, 10000));
  CHECK_EQ(memory_sha256(targets.handles[0], 0, 4'000'000), sha256_of(targets.expected[0]));
  CHECK_EQ(run_child({"write", source.path()}).exit_status, 0);
  OK(ckpt_copy_h2d_batch(stream, pieces.data(), count));
  GIVES(CKPT_ERR_CHANGED, ckpt_stream_sync(stream, 0, 10000));
  targets.check();
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_buffer_free(mapped));
  OK(ckpt_file_close(file));
}

TEST("a batch: a piece that is refused is named, and nothing is copied") {
  const uint32_t buffer = buffer_with(random_bytes(10'000, 1)), memory = new_memory(10'000), stream = new_stream();
  OK(ckpt_memory_fill(memory, 0, 10'000, 0xab));
  const Piece good{memory, buffer, 0, 0, 0, 0, 5000, 1};
  struct Case {
    int32_t status;
    Piece piece;
  };
  const uint64_t max = UINT64_MAX;
  const Case cases[] = {
      {CKPT_ERR_HANDLE, {buffer, buffer, 5000, 0, 0, 0, 10, 1}},
      {CKPT_ERR_HANDLE, {memory, memory, 5000, 0, 0, 0, 10, 1}},
      {CKPT_ERR_INVALID, {memory, buffer, 5000, 0, 9, 10, 10, 2}},
      {CKPT_ERR_INVALID, {memory, buffer, 5000, 0, 10, 9, 10, 2}},
      {CKPT_ERR_INVALID, {memory, buffer, 9991, 0, 0, 0, 10, 1}},
      {CKPT_ERR_INVALID, {memory, buffer, 5000, 9991, 0, 0, 10, 1}},
      {CKPT_ERR_INVALID, {memory, buffer, 5000, 0, 4991, 10, 10, 2}},
      {CKPT_ERR_INVALID, {memory, buffer, 5000, 0, 10, 10'000, 10, 2}},
      {CKPT_ERR_INVALID, {memory, buffer, 5000, 0, max, 10, 10, 3}},
      {CKPT_ERR_INVALID, {memory, buffer, max, 0, 0, 0, 10, 1}},
  };
  for (const Case& one : cases) {
    const Piece pieces[] = {good, one.piece, good};
    GIVES(one.status, ckpt_copy_h2d_batch(stream, pieces, 3));
    CHECK_EQ(last_error().find("piece 1: "), 0u);
  }
  GIVES(CKPT_ERR_INVALID, ckpt_copy_h2d_batch(stream, &good, (1u << 20) + 1));
  GIVES(CKPT_ERR_INVALID, ckpt_copy_h2d_batch(stream, nullptr, 1));
  GIVES(CKPT_ERR_HANDLE, ckpt_copy_h2d_batch(memory, &good, 1));
  OK(ckpt_copy_h2d_batch(stream, nullptr, 0));
  const Piece empty[] = {{memory, buffer, 10'000, 10'000, 0, 0, 0, 7}, {memory, buffer, 5, 5, 9, 9, 9, 0}};
  OK(ckpt_copy_h2d_batch(stream, empty, 2));
  OK(ckpt_stream_sync(stream, 0, 10000));
  CHECK_EQ(memory_sha256(memory, 0, 10'000), sha256_of(std::vector<uint8_t>(10'000, 0xab)));
  OK(ckpt_stream_destroy(stream));
  OK(ckpt_memory_free(memory));
  OK(ckpt_buffer_free(buffer));
}
