import type { Library } from '@ckpt/cuda'
import type { CopyCalls } from 'ckpt/daemon/rank/direct-copies'
import type { Lane } from './streams.ts'

/**
 * Two-dimensional copies go to their own stream and to those of the lanes in turn. What is recorded on a stream then waits for the
 * copies of all of them, so that whoever made them sees no difference but in time.
 */
export function spreadRows(library: Library, lanes: readonly Lane[]): CopyCalls {
  const used = new Set<Lane>()
  let next = 0
  return {
    copyH2dBatch: (...call) => library.copyH2dBatch(...call),
    bufferGather: (...call) => library.bufferGather(...call),
    eventNotify: (...call) => library.eventNotify(...call),
    eventQuery: (event) => library.eventQuery(event),
    copyH2d2d: (stream, ...copy) => {
      const lane = lanes[next]
      next = (next + 1) % (lanes.length + 1)
      if (lane !== undefined) used.add(lane)
      library.copyH2d2d(lane?.stream ?? stream, ...copy)
    },
    eventRecord: (event, stream) => {
      for (const lane of used) {
        library.eventRecord(lane.event, lane.stream)
        library.streamWaitEvent(stream, lane.event)
      }
      used.clear()
      library.eventRecord(event, stream)
    },
  }
}
