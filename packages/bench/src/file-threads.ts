import { availableParallelism } from 'node:os'
import type { Expected } from './engine.ts'
import type { FileAnswer, FileJob } from './file-worker.ts'

const WORKER = new URL('./file-worker.ts', import.meta.url)

/** Does the jobs in as many threads as there are cores, and returns what they found in the order of the jobs. */
export async function inThreads(jobs: readonly FileJob[]): Promise<(Expected | null)[]> {
  const found: (Expected | null)[] = []
  let next = 0
  const thread = async (): Promise<void> => {
    const worker = new Worker(WORKER)
    try {
      while (next < jobs.length) {
        const index = next++
        found[index] = await answer(worker, jobs[index] as FileJob)
      }
    } finally {
      worker.terminate()
    }
  }
  const threads = Math.min(availableParallelism(), jobs.length)
  await Promise.all(Array.from({ length: threads }, thread))
  return found
}

async function answer(worker: Worker, job: FileJob): Promise<Expected | null> {
  const { promise, resolve, reject } = Promise.withResolvers<FileAnswer>()
  worker.onmessage = ({ data }: MessageEvent<FileAnswer>) => resolve(data)
  worker.onerror = ({ message }) => reject(new Error(message))
  worker.postMessage(job)
  const answered = await promise
  if ('error' in answered) throw new Error(answered.error)
  return answered.expected
}
