// Host memory, files, reads and the reference counters.
#include <utility>

#include "buffer.h"
#include "file.h"
#include "gather.h"
#include "init.h"
#include "read.h"
#include "refcounter.h"

using namespace ckpt;

namespace {

constexpr uint64_t kFileReadBytesMax = 128ull << 20;
constexpr uint32_t kReadThreadsMax = 64;
constexpr uint32_t kReadPiecesMax = 1u << 24;
constexpr uint32_t kGatherPiecesMax = 1u << 20;

Read::Piece resolve(const ckpt_read_piece& piece) {
  Read::Piece resolved{find_object<File>(piece.file), find_object<Buffer>(piece.buffer),
                       piece.file_offset, piece.buffer_offset, piece.bytes};
  if (resolved.buffer->file() != nullptr)
    fail(CKPT_ERR_INVALID, "the buffer is a read-only mapping");
  require_range("read into a buffer", piece.buffer_offset, piece.bytes, resolved.buffer->bytes());
  require_range("read of a file", piece.file_offset, piece.bytes, INT64_MAX);
  return resolved;
}

}  // namespace

int32_t ckpt_buffer_alloc(uint64_t bytes, uint32_t flags, uint32_t* buffer_p) {
  return guard([&] {
    uint32_t& out = require(buffer_p, "buffer_p");
    require_initialized();
    out = add_object(Buffer::allocate(bytes, flags));
  });
}

int32_t ckpt_buffer_alloc_near(uint64_t bytes, int32_t node, uint32_t* placed_p,
                               uint32_t* buffer_p) {
  return guard([&] {
    uint32_t& placed_out = require(placed_p, "placed_p");
    uint32_t& out = require(buffer_p, "buffer_p");
    require_initialized();
    if (node < -1) fail(CKPT_ERR_INVALID, "node %d", node);
    bool placed = false;
    out = add_object(Buffer::allocate_near(bytes, node, &placed));
    placed_out = placed ? 1 : 0;
  });
}

int32_t ckpt_buffer_map(uint32_t file, uint32_t* buffer_p) {
  return guard([&] {
    uint32_t& out = require(buffer_p, "buffer_p");
    require_initialized();
    out = add_object(Buffer::map(find_object<File>(file)));
  });
}

int32_t ckpt_buffer_free(uint32_t buffer) {
  return guard([&] { destroy_object<Buffer>(buffer); });
}

int32_t ckpt_buffer_sha256(uint32_t buffer, uint64_t offset, uint64_t bytes, uint8_t* digest_p) {
  return guard([&] {
    uint8_t* digest = &require(digest_p, "digest_p");
    const auto object = find_object<Buffer>(buffer);
    require_range("sha256 of a buffer", offset, bytes, object->bytes());
    object->sha256(offset, bytes, digest);
  });
}

int32_t ckpt_buffer_bytes(uint32_t buffer, uint64_t* bytes_p) {
  return guard([&] { require(bytes_p, "bytes_p") = find_object<Buffer>(buffer)->bytes(); });
}

int32_t ckpt_buffer_path(uint32_t buffer, char* text, uint32_t text_bytes) {
  return guard(
      [&] { copy_text(find_object<Buffer>(buffer)->shared_path().c_str(), text, text_bytes); });
}

int32_t ckpt_buffer_gather(uint32_t dst_buffer, const ckpt_gather_piece* pieces, uint32_t count) {
  return guard([&] {
    if (count > kGatherPiecesMax) fail(CKPT_ERR_INVALID, "more than %u pieces", kGatherPiecesMax);
    if (count > 0) require(pieces, "pieces");
    gather(dst_buffer, pieces, count);
  });
}

int32_t ckpt_file_open(const char* path, uint32_t* file_p) {
  return guard([&] {
    uint32_t& out = require(file_p, "file_p");
    out = add_object(File::open(&require(path, "path")));
  });
}

int32_t ckpt_file_close(uint32_t file) {
  return guard([&] { destroy_object<File>(file); });
}

int32_t ckpt_file_describe(uint32_t file, ckpt_file_info* info_p) {
  return guard([&] {
    ckpt_file_info& out = require(info_p, "info_p");
    ckpt_file_info info;
    find_object<File>(file)->describe(info);
    out = info;
  });
}

int32_t ckpt_file_locate(uint32_t file, ckpt_file_location* location_p) {
  return guard([&] {
    ckpt_file_location& out = require(location_p, "location_p");
    ckpt_file_location location;
    find_object<File>(file)->locate(location);
    out = location;
  });
}

int32_t ckpt_file_direct(uint32_t file, uint32_t* direct_p) {
  return guard([&] {
    uint32_t& out = require(direct_p, "direct_p");
    out = find_object<File>(file)->open_direct() ? 1 : 0;
  });
}

int32_t ckpt_file_read(uint32_t file, uint64_t offset, uint64_t bytes, uint8_t* bytes_p) {
  return guard([&] {
    const auto object = find_object<File>(file);
    require_range("read of a file", offset, bytes, INT64_MAX);
    if (bytes > kFileReadBytesMax)
      fail(CKPT_ERR_INVALID, "ckpt_file_read is for headers of at most 128 MiB");
    if (bytes > 0) object->read(offset, bytes, &require(bytes_p, "bytes_p"));
  });
}

int32_t ckpt_file_lease(uint32_t file, uint32_t signal) {
  return guard([&] { find_object<File>(file)->lease(find_optional<Signal>(signal)); });
}

int32_t ckpt_file_check(uint32_t file) {
  return guard([&] { find_object<File>(file)->check(); });
}

int32_t ckpt_file_sha256(uint32_t file, uint64_t offset, uint64_t bytes, uint8_t* digest_p) {
  return guard([&] {
    uint8_t* digest = &require(digest_p, "digest_p");
    require_range("sha256 of a file", offset, bytes, INT64_MAX);
    find_object<File>(file)->sha256(offset, bytes, digest);
  });
}

int32_t ckpt_read_start(const ckpt_read_piece* pieces, uint32_t count, uint32_t threads_least,
                        uint32_t threads_most, uint32_t signal, uint32_t* read_p) {
  return guard([&] {
    uint32_t& out = require(read_p, "read_p");
    if (threads_least == 0 || threads_least > threads_most || threads_most > kReadThreadsMax)
      fail(CKPT_ERR_INVALID, "threads must be 1 to %u, the smaller number first", kReadThreadsMax);
    if (count > kReadPiecesMax) fail(CKPT_ERR_INVALID, "more than %u pieces", kReadPiecesMax);
    if (count > 0) require(pieces, "pieces");
    std::vector<Read::Piece> resolved;
    resolved.reserve(count);
    for (uint32_t i = 0; i < count; i++) resolved.push_back(resolve(pieces[i]));
    out = add_object(Read::start(std::move(resolved), threads_least, threads_most,
                                 find_optional<Signal>(signal)));
  });
}

int32_t ckpt_read_query(uint32_t read, ckpt_read_progress* progress_p) {
  return guard([&] {
    ckpt_read_progress& out = require(progress_p, "progress_p");
    find_object<Read>(read)->query(out);
  });
}

int32_t ckpt_read_error(uint32_t read, char* text, uint32_t text_bytes) {
  return guard([&] { copy_text(find_object<Read>(read)->error_text().c_str(), text, text_bytes); });
}

int32_t ckpt_read_wait(uint32_t read, uint32_t signal, uint32_t timeout_ms) {
  return guard([&] {
    const auto abort = find_optional<Signal>(signal);
    find_object<Read>(read)->wait(abort.get(), timeout_ms);
  });
}

int32_t ckpt_read_notify(uint32_t read, uint32_t pieces, uint32_t signal) {
  return guard([&] { find_object<Read>(read)->notify(pieces, find_object<Signal>(signal)); });
}

int32_t ckpt_read_destroy(uint32_t read) {
  return guard([&] { destroy_object<Read>(read); });
}

int32_t ckpt_refcounter_create(uint32_t* refcounter_p, char* name_p, uint32_t name_bytes) {
  return guard([&] {
    uint32_t& out = require(refcounter_p, "refcounter_p");
    auto object = std::make_shared<Refcounter>();
    if (name_bytes <= object->name().size())
      fail(CKPT_ERR_INVALID, "the name has %zu characters", object->name().size());
    copy_text(object->name().c_str(), name_p, name_bytes);
    out = add_object(std::move(object));
  });
}

int32_t ckpt_refcounter_destroy(uint32_t refcounter) {
  return guard([&] { destroy_object<Refcounter>(refcounter); });
}
