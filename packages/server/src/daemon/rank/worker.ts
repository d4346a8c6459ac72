import { receiveMessageOnPort, workerData } from 'node:worker_threads'
import { CkptError } from '@ckpt/core'
import { openLibrary, ZmqContext } from '@ckpt/cuda'
import type { RankMessage, RankReport, RankWorkerStart } from './messages.ts'
import { RankWorker } from './rank-worker.ts'

/** The thread of one rank. */
function start({ library: options, rank, spins, port }: RankWorkerStart): void {
  const library = openLibrary(options)
  // before libzmq, CUDA or a stream starts a thread, which then runs there too
  if (rank.numaNode >= 0) library.threadBind(rank.numaNode)
  const thread = {
    send: (report: RankReport) => port.postMessage(report),
    receive: () => {
      const received = receiveMessageOnPort(port) as { message: RankMessage } | undefined
      return received?.message ?? null
    },
    exit() {
      port.close()
      process.exit(0)
    },
  }
  const context = new ZmqContext()
  const worker = new RankWorker({ library, context, rank, spins, thread })
  port.on('message', (message: RankMessage) => worker.take(message))
}

const given = workerData as RankWorkerStart
try {
  start(given)
} catch (error) {
  const report: RankReport = { type: 'dead', failure: CkptError.wrap(error).failure }
  given.port.postMessage(report)
}
