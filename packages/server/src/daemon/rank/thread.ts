import { MessageChannel, Worker } from 'node:worker_threads'
import type { RankMessage, RankReport, RankWorkerStart } from './messages.ts'

/** The thread of a rank's Worker, from outside. */
export interface RankThread {
  post(message: RankMessage): void
  /** Nothing is sent or taken any more. */
  hangUp(): void
  /** Ends it wherever it is. */
  terminate(): void
}

export interface ThreadEvents {
  report(report: RankReport): void
  failed(error: unknown): void
  exited(): void
}

/** Starts the thread; what it does is told later. */
export type StartThread = (start: Omit<RankWorkerStart, 'port'>, events: ThreadEvents) => RankThread

/** In a Worker of this process. */
export const startThread: StartThread = (start, events) => {
  const { port1, port2 } = new MessageChannel()
  const workerData: RankWorkerStart = { ...start, port: port2 }
  const worker = new Worker(new URL('./worker.ts', import.meta.url), {
    workerData,
    transferList: [port2],
  })
  port1.on('message', (report: RankReport) => events.report(report))
  worker.on('error', (error) => events.failed(error))
  worker.on('exit', () => events.exited())
  return {
    post: (message) => port1.postMessage(message),
    hangUp: () => port1.close(),
    terminate() {
      worker.unref()
      void worker.terminate()
    },
  }
}
