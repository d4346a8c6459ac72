#include "gather.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <vector>

#include "rows.h"

namespace ckpt {
namespace {

// Held until the gather ends, so that another thread may free the handle meanwhile.
struct Source {
  std::shared_ptr<Buffer> buffer;
  // Of a file's mapping, which the processor never touches (File::read_leased says why).
  std::optional<File::LeasedReads> reads;

  void copy(uint64_t offset, uint64_t bytes, uint8_t* to) {
    if (reads.has_value()) {
      reads->read(offset, bytes, to);
    } else {
      memcpy(to, buffer->address() + offset, bytes);
    }
  }
};

struct Piece {
  Source* source;
  CopyRows rows;
};

// Each handle is looked up once: thousands of pieces come out of a few buffers.
class Sources {
 public:
  Source& find(uint32_t handle) {
    const auto known = sources_.find(handle);
    if (known != sources_.end()) return known->second;
    Source source{find_object<Buffer>(handle), std::nullopt};
    if (const auto& file = source.buffer->file(); file != nullptr) {
      file->require_lease();
      source.reads.emplace(file);
    }
    return sources_.emplace(handle, std::move(source)).first->second;
  }

  void end_reads() {
    for (auto& [handle, source] : sources_) {
      if (source.reads.has_value()) source.reads->end();
    }
  }

 private:
  std::unordered_map<uint32_t, Source> sources_;  // its elements stay where they are
};

// Also bounds the work: rows that overlap would be as many as the height says.
void require_pitch(const char* what, uint64_t pitch, uint64_t width) {
  if (pitch < width) {
    fail(CKPT_ERR_INVALID, "a %s pitch of %llu bytes for rows of %llu", what,
         static_cast<unsigned long long>(pitch), static_cast<unsigned long long>(width));
  }
}

Piece resolve(const ckpt_gather_piece& piece, uint32_t to_handle, const Buffer& to,
              Sources& sources) {
  if (piece.reserved != 0) fail(CKPT_ERR_INVALID, "reserved is %u, not 0", piece.reserved);
  if (piece.src_buffer == to_handle)
    fail(CKPT_ERR_INVALID, "its source is the buffer that it goes to");
  Source& source = sources.find(piece.src_buffer);
  CopyRows rows{piece.dst_offset, piece.dst_pitch, piece.src_offset,
                piece.src_pitch,  piece.width,     piece.height};
  if (rows.height > 1) {
    require_pitch("source", rows.from_pitch, rows.width);
    require_pitch("destination", rows.to_pitch, rows.width);
  }
  require_range("gather from a buffer", rows.from_offset,
                rows_bytes(rows.from_pitch, rows.width, rows.height), source.buffer->bytes());
  require_range("gather into a buffer", rows.to_offset,
                rows_bytes(rows.to_pitch, rows.width, rows.height), to.bytes());
  if (rows.from_pitch == rows.width && rows.to_pitch == rows.width) {
    rows.width *= rows.height;  // one row; what lies in a buffer is a number of 64 bits
    rows.height = std::min<uint64_t>(rows.height, 1);
  }
  return {&source, rows};
}

void copy(const Piece& piece, uint8_t* to) {
  const CopyRows& rows = piece.rows;
  if (rows.width == 0) return;  // whatever the height is
  for (uint64_t row = 0; row < rows.height; row++) {
    piece.source->copy(rows.from_offset + row * rows.from_pitch, rows.width,
                       to + rows.to_offset + row * rows.to_pitch);
  }
}

}  // namespace

void gather(uint32_t to_handle, const ckpt_gather_piece* pieces, uint32_t count) {
  const auto to = find_object<Buffer>(to_handle);
  if (to->file() != nullptr) fail(CKPT_ERR_INVALID, "the buffer is a read-only mapping");
  Sources sources;
  std::vector<Piece> resolved;
  resolved.reserve(count);
  for (uint32_t i = 0; i < count; i++) {
    try {
      resolved.push_back(resolve(pieces[i], to_handle, *to, sources));
    } catch (const Error& error) {
      fail(error.status(), "piece %u: %s", i, error.what());
    }
  }
  for (const Piece& piece : resolved) copy(piece, to->address());
  sources.end_reads();
}

}  // namespace ckpt
