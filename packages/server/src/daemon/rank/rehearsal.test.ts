import { expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { openLibrary, selectDevices, ZmqContext } from '@ckpt/cuda'
import { TestDir } from '../registry/testing/fixture.ts'
import { rehearse } from './rehearsal.ts'

setDefaultTimeout(60_000)

function withStage(work: (rehearsed: (stopped: () => boolean) => number) => void): number {
  const { library: options, ranks } = selectDevices('host:1', null)
  const library = openLibrary(options)
  const dir = new TestDir()
  const context = new ZmqContext()
  let kept = 0
  try {
    const path = join(dir.path, 'rehearsal.sock')
    work((stopped) => {
      const host = { library, context, rank: ranks[0]!, quarantine: () => kept++ }
      const runs = rehearse(host, `ipc://${path}`, stopped)
      expect(existsSync(path)).toBe(false)
      return runs
    })
    return library.liveObjects() + kept
  } finally {
    context.close()
    dir.remove()
  }
}

test('ten rehearsals go through and leave nothing', () => {
  const left = withStage((rehearsed) => {
    expect(rehearsed(() => false)).toBe(10)
  })
  expect(left).toBe(0)
})

test('an update that comes ends them after the one at hand', () => {
  const left = withStage((rehearsed) => {
    let asked = 0
    expect(rehearsed(() => asked++ === 2)).toBe(2)
  })
  expect(left).toBe(0)
})
