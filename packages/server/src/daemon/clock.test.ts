import { expect, test } from 'bun:test'
import { clockMs } from './clock.ts'

/** What a thread finds that begins after somebody has set the time of day to an hour later. */
const LATER = `
  Object.defineProperty(performance, 'timeOrigin', { value: performance.timeOrigin + 3_600_000 })
  const { clockMs } = await import(${JSON.stringify(`${import.meta.dir}/clock.ts`)})
  self.onmessage = () => self.postMessage(clockMs())
  self.postMessage(0)
`

test('a thread that began after the time of day was set has the same clock', async () => {
  const worker = new Worker(URL.createObjectURL(new Blob([LATER], { type: 'text/javascript' })))
  const said = (): Promise<number> =>
    new Promise((resolve, reject) => {
      worker.onmessage = ({ data }: MessageEvent<number>) => resolve(data)
      worker.onerror = ({ message }) => reject(new Error(message))
    })
  await said()
  for (let asked = 0; asked < 20; asked++) {
    const beforeMs = clockMs()
    const answer = said()
    worker.postMessage('now')
    const theirMs = await answer
    const afterMs = clockMs()
    // each thread has read the machine's clock for itself
    expect(theirMs).toBeGreaterThan(beforeMs - 1)
    expect(theirMs).toBeLessThan(afterMs + 1)
  }
  worker.terminate()
})
