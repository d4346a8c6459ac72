import type { Dialect } from './conversation-types.ts'

/** Nobody's, a proxy's, or that of a server that has given up: none of the engine's workers has left because of them. */
const NOT_THE_WORKERS: readonly number[] = [0, 408, 502, 503, 504]

/** Whether it comes of what a worker of the engine did. */
export function isTheWorkers({ status }: { readonly status: number }): boolean {
  return !NOT_THE_WORKERS.includes(status)
}

/**
 * Whether an answer to the request that started a worker tells that this worker, which owes a reply, has stopped reading the
 * ring. One of D1 says nothing and keeps its connection when it fails: its engine's own answer is all there is. Every other
 * one replies or disconnects, perhaps after the answer.
 */
export function endsReading(answer: { readonly status: number }, dialect: Dialect | null): boolean {
  return dialect === 'D1' && isTheWorkers(answer)
}
