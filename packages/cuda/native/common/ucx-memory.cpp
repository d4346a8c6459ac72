// The part of UcxWorker that is about memory: registering it for peers, and keys to a peer's.
#include <cstdio>
#include <cstdlib>

#include "ucx-worker.h"

namespace ckpt {

Ucx::Memory UcxWorker::map(void* address, uint64_t bytes, bool readable) {
  Ucx::MapParams params{};
  params.field_mask = Ucx::MapParams::kAddress | Ucx::MapParams::kLength |
                      Ucx::MapParams::kProtection | Ucx::MapParams::kMemoryType;
  params.address = address;
  params.length = bytes;
  params.protection = Ucx::MapParams::kLocalRead | Ucx::MapParams::kLocalWrite |
                      (readable ? Ucx::MapParams::kRemoteRead : 0);
  params.memory_type = Ucx::RequestParams::kHostMemory;
  const Lock lock(*this);
  if (ending_) throw Error(*ending_);
  Ucx::Memory memory = nullptr;
  ucx_.check(ucx_.mem_map(context_, &params, &memory), "ucp_mem_map");
  mapped_.insert(memory);
  return memory;
}

void UcxWorker::unmap(Ucx::Memory memory) noexcept {
  const Lock lock(*this);
  if (mapped_.erase(memory) > 0) ucx_.mem_unmap(context_, memory);
}

std::vector<uint8_t> UcxWorker::pack(Ucx::Memory memory) {
  const Lock lock(*this);
  if (ending_) throw Error(*ending_);
  void* bytes = nullptr;
  size_t count = 0;
  ucx_.check(ucx_.rkey_pack(context_, memory, &bytes, &count), "ucp_rkey_pack");
  const auto* first = static_cast<const uint8_t*>(bytes);
  std::vector<uint8_t> packed(first, first + count);
  ucx_.rkey_buffer_release(bytes);
  return packed;
}

Ucx::RemoteKey UcxWorker::unpack(Peer* peer, const std::vector<uint8_t>& packed) {
  const Lock lock(*this);
  if (ending_) throw Error(*ending_);
  if (peer->failure) throw Error(*peer->failure);
  Ucx::RemoteKey key = nullptr;
  ucx_.check(ucx_.ep_rkey_unpack(peer->endpoint, packed.data(), &key), "ucp_ep_rkey_unpack");
  keys_.insert(key);
  return key;
}

void UcxWorker::release(Ucx::RemoteKey key) noexcept {
  const Lock lock(*this);
  if (keys_.erase(key) > 0) ucx_.rkey_destroy(key);
}

std::string UcxWorker::describe(Peer* peer) {
  char* text = nullptr;
  size_t bytes = 0;
  FILE* stream = open_memstream(&text, &bytes);
  if (stream == nullptr) fail(CKPT_ERR_MEMORY, "open_memstream");
  {
    const Lock lock(*this);
    if (!ending_ && peer->endpoint != nullptr) ucx_.ep_print_info(peer->endpoint, stream);
  }
  fclose(stream);
  std::string said(text, bytes);
  free(text);
  return said;
}

}  // namespace ckpt
