// Copies out of a peer's memory, see bounce.h.
#include <algorithm>

#include "bounce.h"
#include "memory.h"
#include "stream.h"

namespace ckpt {
namespace {

// Tells when the stream has done its work on a chunk or has left it out.
class Left {
 public:
  explicit Left(std::shared_ptr<BounceChunk> chunk) : chunk_(std::move(chunk)) {}
  ~Left() { chunk_->left = true; }
  Left(const Left&) = delete;

 private:
  std::shared_ptr<BounceChunk> chunk_;
};

}  // namespace

// The network begins when the stream's turn has come; from chunk to chunk the stream is held until
// the bytes are there.
void CudaStream::copy_remote(std::shared_ptr<Memory> to, uint64_t to_offset,
                             std::shared_ptr<P2pRemote> from, uint64_t from_offset,
                             uint64_t bytes) {
  const auto target = std::static_pointer_cast<CudaMemory>(std::move(to));
  const auto bounce = from->p2p().part<Bounce>();
  Bounce::Chunks chunks;
  std::vector<Work> works;
  for (uint64_t done = 0; done < bytes;) {
    const auto chunk = std::make_shared<BounceChunk>();
    chunk->from = from;
    chunk->offset = from_offset + done;
    chunk->bytes = std::min(Bounce::kChunkBytes, bytes - done);
    chunks.push_back(chunk);
    works.push_back({After::success,
                     [target, chunk, at = to_offset + done,
                      left = std::make_shared<Left>(chunk)](Turn& turn) {
                       if (chunk->failure) throw Error(*chunk->failure);
                       const auto until = std::make_shared<Mark>(turn.owner.device());
                       turn.use({target}, [&] {
                         check_cuda(cudaMemcpyAsync(target->at(at), chunk->slot, chunk->bytes,
                                                    cudaMemcpyHostToDevice, turn.stream),
                                    "copying to the device");
                       });
                       until->record(turn.stream, nullptr, turn.wakes);
                       chunk->until = until;
                     },
                     std::shared_ptr<Gate>(chunk, &chunk->there)});
    done += chunk->bytes;
  }
  works.insert(works.begin(), {After::success, [bounce, chunks](Turn&) { bounce->read(chunks); }});
  add(std::move(works));
}

}  // namespace ckpt
