// Reads of another process's memory: handles and arguments are checked here, the work is p2p.h's.
#include <algorithm>
#include <utility>
#include <vector>

#include "backend.h"
#include "buffer.h"
#include "init.h"
#include "p2p.h"
#include "p2p-read.h"

using namespace ckpt;

namespace {

constexpr uint32_t kFrameBytesMax = 1u << 20;
constexpr uint32_t kPiecesMax = 1u << 20;

void give(const std::vector<uint8_t>& bytes, uint8_t* out, uint32_t capacity, uint32_t* length_p) {
  if (bytes.size() > capacity)
    fail(CKPT_ERR_INVALID, "%zu bytes have no room in %u", bytes.size(), capacity);
  std::copy(bytes.begin(), bytes.end(), out);
  *length_p = static_cast<uint32_t>(bytes.size());
}

void require_frame(const uint8_t* bytes, uint32_t length, const char* name) {
  require(bytes, name);
  if (length > kFrameBytesMax) fail(CKPT_ERR_INVALID, "%s of %u bytes", name, length);
}

P2pRead::Piece resolve(const ckpt_p2p_piece& piece, const Buffer& to) {
  auto from = find_object<P2pRemote>(piece.remote);
  require_range("read into a buffer", piece.buffer_offset, piece.bytes, to.bytes());
  require_range("read from a peer", piece.remote_offset, piece.bytes, from->bytes());
  return {std::move(from), piece.remote_offset, piece.buffer_offset, piece.bytes};
}

}  // namespace

int32_t ckpt_p2p_open(const char* devices, uint32_t* p2p_p) {
  return guard([&] {
    uint32_t& out = require(p2p_p, "p2p_p");
    require(devices, "devices");
    require_initialized();
    out = add_object(std::make_shared<P2p>(devices));
  });
}

int32_t ckpt_p2p_close(uint32_t p2p) {
  return guard([&] { destroy_object<P2p>(p2p); });
}

int32_t ckpt_p2p_address(uint32_t p2p, uint8_t* bytes_p, uint32_t capacity, uint32_t* length_p) {
  return guard([&] {
    uint8_t* out = &require(bytes_p, "bytes_p");
    require(length_p, "length_p");
    give(find_object<P2p>(p2p)->address(), out, capacity, length_p);
  });
}

int32_t ckpt_p2p_share(uint32_t p2p, uint32_t buffer, uint8_t* key_p, uint32_t capacity,
                       uint32_t* length_p) {
  return guard([&] {
    uint8_t* out = &require(key_p, "key_p");
    require(length_p, "length_p");
    const auto object = find_object<P2p>(p2p);
    const auto shared = find_object<Buffer>(buffer);
    const std::vector<uint8_t> key = object->share(shared);
    try {
      give(key, out, capacity, length_p);
    } catch (...) {
      object->unshare(*shared);
      throw;
    }
  });
}

int32_t ckpt_p2p_unshare(uint32_t p2p, uint32_t buffer) {
  return guard([&] { find_object<P2p>(p2p)->unshare(*find_object<Buffer>(buffer)); });
}

int32_t ckpt_p2p_connect(uint32_t p2p, const uint8_t* address, uint32_t length, uint32_t* peer_p) {
  return guard([&] {
    uint32_t& out = require(peer_p, "peer_p");
    require_frame(address, length, "address");
    out = add_object(std::make_shared<P2pPeer>(find_object<P2p>(p2p), address, length));
  });
}

int32_t ckpt_p2p_disconnect(uint32_t peer) {
  return guard([&] { destroy_object<P2pPeer>(peer); });
}

int32_t ckpt_p2p_attach(uint32_t peer, const uint8_t* key, uint32_t length, uint32_t* remote_p) {
  return guard([&] {
    uint32_t& out = require(remote_p, "remote_p");
    require_frame(key, length, "key");
    out = add_object(std::make_shared<P2pRemote>(find_object<P2pPeer>(peer), key, length));
  });
}

int32_t ckpt_p2p_detach(uint32_t remote) {
  return guard([&] { destroy_object<P2pRemote>(remote); });
}

int32_t ckpt_p2p_transport(uint32_t peer, char* text, uint32_t text_bytes) {
  return guard([&] {
    copy_text(find_object<P2pPeer>(peer)->transport().c_str(), text, text_bytes);
  });
}

int32_t ckpt_p2p_read_start(const ckpt_p2p_piece* pieces, uint32_t count, uint32_t buffer,
                            uint32_t signal, uint32_t* read_p) {
  return guard([&] {
    uint32_t& out = require(read_p, "read_p");
    if (count > kPiecesMax) fail(CKPT_ERR_INVALID, "more than %u pieces", kPiecesMax);
    if (count > 0) require(pieces, "pieces");
    auto to = find_object<Buffer>(buffer);
    if (to->file() != nullptr) fail(CKPT_ERR_INVALID, "the buffer is a read-only mapping");
    std::vector<P2pRead::Piece> resolved;
    resolved.reserve(count);
    for (uint32_t i = 0; i < count; i++) resolved.push_back(resolve(pieces[i], *to));
    out = add_object(
        P2pRead::start(std::move(resolved), std::move(to), find_optional<Signal>(signal)));
  });
}

int32_t ckpt_p2p_read_query(uint32_t read) {
  return guard([&]() -> int32_t {
    return find_object<P2pRead>(read)->query() ? CKPT_OK : CKPT_NOT_READY;
  });
}

int32_t ckpt_p2p_read_destroy(uint32_t read) {
  return guard([&] { destroy_object<P2pRead>(read); });
}

int32_t ckpt_copy_remote(uint32_t stream, uint32_t memory, uint64_t memory_offset, uint32_t remote,
                         uint64_t remote_offset, uint64_t bytes) {
  return guard([&] {
    const auto on = find_object<Stream>(stream);
    auto to = find_object<Memory>(memory);
    auto from = find_object<P2pRemote>(remote);
    require_range("copy to device memory", memory_offset, bytes, to->bytes());
    require_range("copy from a peer", remote_offset, bytes, from->bytes());
    if (bytes == 0) return;
    on->copy_remote(std::move(to), memory_offset, std::move(from), remote_offset, bytes);
  });
}
