/** `scripts/gpu-cluster` without a GPU: that it does what it is to do on one, and says when something goes wrong. */
import { describe, expect, test } from 'bun:test'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { ROOT, run, scratch, start } from '../test/support/process.ts'
import { withoutUcx } from '../test/support/ucx.ts'
import { devicesOf, parseLayout, ranksOf } from './gpu_cluster/layout.ts'
import { parseOptions, UsageError } from './gpu_cluster/options.ts'
import { faultOf, readFault, type Row } from './gpu_cluster/results.ts'

const SCRIPT = [process.execPath, join(ROOT, 'scripts/gpu-cluster.ts'), '--devices', 'host']

/** Processes in whose command a path is. */
function processesNaming(path: string): string[] {
  return readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(path)
    } catch {
      return false // it has ended meanwhile
    }
  })
}

/** Neither processes nor files of a run whose `TMPDIR` was this one. */
function expectNothingLeft(dir: string, output: string): void {
  const written = /files written to (\S+),/.exec(output)?.[1] ?? ''
  expect(written).not.toBe('')
  expect([processesNaming(dir), readdirSync(dir), existsSync(written)]).toEqual([[], [], false])
}

describe('what it is told', () => {
  test('layouts: ranks of leader and follower, on one device or on one each', () => {
    const shared = parseLayout('2+1')
    expect([ranksOf(shared, 0), ranksOf(shared, 1)]).toEqual([[0, 1], [2]])
    expect([devicesOf(shared, 'cuda', 1), devicesOf(shared, 'host', 1)]).toEqual([
      'cuda:0',
      'host:1',
    ])
    const separate = parseLayout('1/1')
    expect(devicesOf(separate, 'cuda', 1)).toBe('cuda:1')
    for (const text of ['', '2', '0+1', '9+1', '1+1+1']) {
      expect(() => parseLayout(text)).toThrow(UsageError)
    }
  })

  test('each flag takes the words up to the next one', () => {
    const told = parseOptions(['--only', 'a', 'c', '--mib', '64', '--layouts', '1+1', '2+2'])
    expect(told).toMatchObject({ only: ['a', 'c'], mib: 64, devices: 'cuda', json: null })
    expect(told.layouts?.map(({ name }) => name)).toEqual(['1+1', '2+2'])
    for (const words of [['--only', 'e'], ['--mib', '0'], ['--mib'], ['x'], ['--x']]) {
      expect(() => parseOptions(words)).toThrow(UsageError)
    }
  })
})

test('what cannot be written is wrong usage, before any library is opened', async () => {
  const cuda = SCRIPT.map((word) => (word === 'host' ? 'cuda' : word))
  const { status, stdout, stderr } = await run([...cuda, '--json', '/nowhere/rows.json'])
  expect({ status, stdout }).toEqual({ status: 2, stdout: '' })
  expect(stderr).toStartWith('gpu-cluster: --json /nowhere/rows.json: ')
})

test('an update counts only when bytes were compared, and a read only over what it was to take', () => {
  expect(faultOf({ comparedBytes: 1, wrongBytes: 0 })).toBeNull()
  expect(faultOf({ comparedBytes: 1, wrongBytes: 1 })).toBe('bytes are wrong')
  expect(faultOf({ comparedBytes: 0, wrongBytes: 0 })).toBe('no bytes were compared')
  expect(readFault(undefined, null)).toBeNull()
  expect(readFault(['shm'], ['shm', 'cma'])).toBeNull()
  expect(readFault(['shm', 'emulated'], ['shm', 'cma'])).toBe('read by emulated, not shm or cma')
  for (const seen of [undefined, []]) {
    expect(readFault(seen, ['emulated'])).toBe('nothing was read of the other daemon')
  }
})

describe.skipIf(withoutUcx !== null)('on the host library', () => {
  test('two ranks each, a follower that is killed, and direct updates: every byte is right', async () => {
    const dir = scratch()
    try {
      const json = join(dir.path, 'rows.json')
      const what = ['--only', 'a', 'c', 'd', '--layouts', '2+2', '--updates', '2', '--mib', '8']
      const { status, stdout } = await run([...SCRIPT, ...what, '--json', json])
      expect(stdout).toEndWith('gpu-cluster: passed\n')
      expect(status).toBe(0)
      const { rows, passed } = (await Bun.file(json).json()) as { rows: Row[]; passed: boolean }
      expect(passed).toBe(true)
      expect(rows.map(({ part }) => part).join('')).toBe('aacccccdddddddd')
      const updates = rows.filter(({ bytes }) => bytes !== null)
      expect(updates).toHaveLength(13)
      for (const { comparedBytes } of updates) expect(comparedBytes).toBeGreaterThan(2 ** 24)
    } finally {
      dir.remove()
    }
  }, 120_000)

  test('what is not done in its time is killed and told, and fails', async () => {
    const dir = scratch()
    try {
      const what = ['--only', 'a', '--layouts', '1+1', '--mib', '8', '--layout-seconds', '1']
      const { status, stdout } = await run([...SCRIPT, ...what], { TMPDIR: dir.path })
      expect(status).toBe(1)
      expect(stdout).toContain('FAILED: not done in 1 s: ')
      expect(stdout).toEndWith('gpu-cluster: FAILED, 1 of 1 rows\n')
      expectNothingLeft(dir.path, stdout)
    } finally {
      dir.remove()
    }
  }, 60_000)

  test.each(['SIGTERM', 'SIGINT'] as const)(
    '%s ends it with all that it has started and written',
    async (signal) => {
      const dir = scratch()
      try {
        const what = ['--only', 'a', '--layouts', '1+1', '--mib', '8', '--updates', '1000']
        const script = await start([...SCRIPT, ...what], /daemons and engines are there/, {
          TMPDIR: dir.path,
        })
        expect(processesNaming(dir.path)).toHaveLength(4)
        expect(await script.stop(signal)).toBe(1)
        expect(script.stderr()).toContain(`FAILED: ended by ${signal}`)
        expectNothingLeft(dir.path, script.stderr())
      } finally {
        dir.remove()
      }
    },
    60_000,
  )
})
