import { type Shard, writeShard } from 'ckpt/cli/write-checkpoint'
import type { Expected } from './engine.ts'

/** What a thread does with one file. */
export type FileJob =
  | { readonly type: 'write'; readonly shard: Shard; readonly seed: number }
  | { readonly type: 'hash'; readonly path: string; readonly ranks: number }

export type FileAnswer = { readonly expected: Expected | null } | { readonly error: string }

declare const self: Worker

self.onmessage = async ({ data }: MessageEvent<FileJob>) => {
  self.postMessage(await answerOf(data))
}

async function answerOf(job: FileJob): Promise<FileAnswer> {
  try {
    if (job.type === 'hash') {
      // takes a thread most of a second to load, and one that writes does without
      const { expectedTensors } = await import('ckpt/cli/verify-engine')
      return { expected: await expectedTensors([job.path], job.ranks) }
    }
    await writeShard(job.shard, job.seed)
    return { expected: null }
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) }
  }
}
