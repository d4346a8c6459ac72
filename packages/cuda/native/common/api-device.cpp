// Devices and what runs on them: handles and arguments are checked here, the work is the backend's
// (backend.h).
#include <algorithm>
#include <utility>
#include <vector>

#include "backend.h"
#include "buffer.h"
#include "init.h"
#include "rows.h"
#include "signals.h"

using namespace ckpt;

namespace {

constexpr uint32_t kCopyPiecesMax = 1u << 20;

BatchCopy find_copy(uint32_t memory, uint32_t buffer, const CopyRows& rows) {
  BatchCopy copy{find_object<Memory>(memory), find_object<Buffer>(buffer), rows};
  const uint64_t pitch = std::min(rows.to_pitch, rows.from_pitch);
  if (pitch < rows.width) {
    fail(CKPT_ERR_INVALID, "a pitch of %llu bytes for rows of %llu",
         static_cast<unsigned long long>(pitch), static_cast<unsigned long long>(rows.width));
  }
  require_range("copy to device memory", rows.to_offset,
                rows_bytes(rows.to_pitch, rows.width, rows.height), copy.to->bytes());
  require_range("copy from a buffer", rows.from_offset,
                rows_bytes(rows.from_pitch, rows.width, rows.height), copy.from->bytes());
  return copy;
}

bool is_empty(const CopyRows& rows) { return rows.width == 0 || rows.height == 0; }

void copy_rows(uint32_t stream, uint32_t memory, uint32_t buffer, const CopyRows& rows) {
  const auto on = find_object<Stream>(stream);
  BatchCopy copy = find_copy(memory, buffer, rows);
  if (!is_empty(rows)) on->copy_h2d(std::move(copy.to), std::move(copy.from), rows);
}

CopyRows rows_of(const ckpt_h2d_piece& piece) {
  const bool together = piece.height < 2;
  return {piece.memory_offset, together ? piece.width : piece.memory_pitch,
          piece.buffer_offset, together ? piece.width : piece.buffer_pitch,
          piece.width,         piece.height};
}

}  // namespace

int32_t ckpt_device_count(uint32_t* count_p) {
  return guard([&] {
    uint32_t& out = require(count_p, "count_p");
    require_initialized();
    out = backend::device_count();
  });
}

int32_t ckpt_device_describe(uint32_t device, ckpt_device_info* info_p) {
  return guard([&] {
    ckpt_device_info& out = require(info_p, "info_p");
    require_device(device);
    ckpt_device_info info{};
    backend::device_describe(device, info);
    out = info;
  });
}

int32_t ckpt_device_memory(uint32_t device, uint64_t* free_p, uint64_t* total_p) {
  return guard([&] {
    uint64_t& free_out = require(free_p, "free_p");
    uint64_t& total_out = require(total_p, "total_p");
    require_device(device);
    uint64_t free_bytes = 0;
    uint64_t total_bytes = 0;
    backend::device_memory(device, free_bytes, total_bytes);
    free_out = free_bytes;
    total_out = total_bytes;
  });
}

int32_t ckpt_memory_alloc(uint32_t device, uint64_t bytes, uint32_t* memory_p) {
  return guard([&] {
    uint32_t& out = require(memory_p, "memory_p");
    require_device(device);
    if (bytes == 0) fail(CKPT_ERR_INVALID, "device memory of 0 bytes");
    out = add_object(backend::memory_alloc(device, bytes));
  });
}

int32_t ckpt_memory_free(uint32_t memory) {
  return guard([&] { destroy_object<Memory>(memory); });
}

int32_t ckpt_memory_export(uint32_t memory, uint8_t* handle_p) {
  return guard([&] {
    uint8_t* handle = &require(handle_p, "handle_p");
    find_object<Memory>(memory)->export_handle(handle);
  });
}

int32_t ckpt_memory_open(uint32_t device, const uint8_t* handle, uint64_t bytes,
                         uint32_t* memory_p) {
  return guard([&] {
    uint32_t& out = require(memory_p, "memory_p");
    require_device(device);
    if (bytes == 0) fail(CKPT_ERR_INVALID, "device memory of 0 bytes");
    out = add_object(backend::memory_open(device, &require(handle, "handle"), bytes));
  });
}

int32_t ckpt_memory_fill(uint32_t memory, uint64_t offset, uint64_t bytes, uint32_t value) {
  return guard([&] {
    const auto object = find_object<Memory>(memory);
    require_range("fill of device memory", offset, bytes, object->bytes());
    if (value > 255) fail(CKPT_ERR_INVALID, "the value %u is not a byte", value);
    if (bytes > 0) object->fill(offset, bytes, value);
  });
}

int32_t ckpt_memory_sha256(uint32_t memory, uint64_t offset, uint64_t bytes, uint8_t* digest_p) {
  return guard([&] {
    uint8_t* digest = &require(digest_p, "digest_p");
    const auto object = find_object<Memory>(memory);
    require_range("sha256 of device memory", offset, bytes, object->bytes());
    object->sha256(offset, bytes, digest);
  });
}

int32_t ckpt_stream_create(uint32_t device, uint32_t* stream_p) {
  return guard([&] {
    uint32_t& out = require(stream_p, "stream_p");
    require_device(device);
    out = add_object(backend::stream_create(device));
  });
}

int32_t ckpt_stream_destroy(uint32_t stream) {
  return guard([&] { destroy_object<Stream>(stream); });
}

int32_t ckpt_stream_wait_event(uint32_t stream, uint32_t event) {
  return guard([&] {
    const auto waited = find_object<Event>(event);
    find_object<Stream>(stream)->wait_event(*waited);
  });
}

int32_t ckpt_stream_sync(uint32_t stream, uint32_t signal, uint32_t timeout_ms) {
  return guard([&] {
    const auto abort = find_optional<Signal>(signal);
    find_object<Stream>(stream)->sync(abort.get(), timeout_ms);
  });
}

int32_t ckpt_event_create(uint32_t device, uint32_t* event_p) {
  return guard([&] {
    uint32_t& out = require(event_p, "event_p");
    require_device(device);
    out = add_object(backend::event_create(device));
  });
}

int32_t ckpt_event_destroy(uint32_t event) {
  return guard([&] { destroy_object<Event>(event); });
}

int32_t ckpt_event_record(uint32_t event, uint32_t stream) {
  return guard([&] {
    const auto recorded = find_object<Event>(event);
    const auto on = find_object<Stream>(stream);
    if (recorded->device() != on->device()) {
      fail(CKPT_ERR_INVALID, "an event of device %u recorded on a stream of device %u",
           recorded->device(), on->device());
    }
    recorded->record(*on);
  });
}

int32_t ckpt_event_notify(uint32_t event, uint32_t signal) {
  return guard([&] {
    auto raised = find_object<Signal>(signal);
    find_object<Event>(event)->notify(std::move(raised));
  });
}

int32_t ckpt_event_query(uint32_t event) {
  return guard(
      [&]() -> int32_t { return find_object<Event>(event)->query() ? CKPT_OK : CKPT_NOT_READY; });
}

int32_t ckpt_event_wait(uint32_t event, uint32_t signal, uint32_t timeout_ms) {
  return guard([&] {
    const auto abort = find_optional<Signal>(signal);
    find_object<Event>(event)->wait(abort.get(), timeout_ms);
  });
}

int32_t ckpt_copy_h2d(uint32_t stream, uint32_t memory, uint64_t memory_offset, uint32_t buffer,
                      uint64_t buffer_offset, uint64_t bytes) {
  return guard([&] {
    copy_rows(stream, memory, buffer, {memory_offset, bytes, buffer_offset, bytes, bytes, 1});
  });
}

int32_t ckpt_copy_h2d_2d(uint32_t stream, uint32_t memory, uint64_t memory_offset,
                         uint64_t memory_pitch, uint32_t buffer, uint64_t buffer_offset,
                         uint64_t buffer_pitch, uint64_t width, uint64_t height) {
  return guard([&] {
    copy_rows(stream, memory, buffer,
              {memory_offset, memory_pitch, buffer_offset, buffer_pitch, width, height});
  });
}

int32_t ckpt_copy_h2d_batch(uint32_t stream, const ckpt_h2d_piece* pieces, uint32_t count) {
  return guard([&] {
    const auto on = find_object<Stream>(stream);
    if (count > kCopyPiecesMax) fail(CKPT_ERR_INVALID, "more than %u pieces", kCopyPiecesMax);
    if (count > 0) require(pieces, "pieces");
    std::vector<BatchCopy> copies;
    copies.reserve(count);
    for (uint32_t i = 0; i < count; i++) {
      try {
        copies.push_back(find_copy(pieces[i].memory, pieces[i].buffer, rows_of(pieces[i])));
      } catch (const Error& error) {
        fail(error.status(), "piece %u: %s", i, error.what());
      }
      if (is_empty(copies.back().rows)) copies.pop_back();
    }
    if (!copies.empty()) on->copy_h2d_batch(std::move(copies));
  });
}

int32_t ckpt_copy_device(uint32_t stream, uint32_t dst_memory, uint32_t src_memory,
                         const ckpt_copy_piece* pieces, uint32_t count) {
  return guard([&] {
    const auto on = find_object<Stream>(stream);
    auto to = find_object<Memory>(dst_memory);
    auto from = find_object<Memory>(src_memory);
    if (count > kCopyPiecesMax) fail(CKPT_ERR_INVALID, "more than %u pieces", kCopyPiecesMax);
    if (count > 0) require(pieces, "pieces");
    std::vector<ckpt_copy_piece> checked(pieces, pieces + count);
    for (const ckpt_copy_piece& piece : checked) {
      require_range("copy to device memory", piece.dst_offset, piece.bytes, to->bytes());
      require_range("copy from device memory", piece.src_offset, piece.bytes, from->bytes());
    }
    if (count > 0) on->copy_device(std::move(to), std::move(from), std::move(checked));
  });
}
