import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { lockStateDir } from './lock.ts'

let dir: string
const children: Bun.Subprocess[] = []

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'ckpt-lock-'))
})

afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
  rmSync(dir, { recursive: true, force: true })
})

/** A process that holds the lock until it is killed. */
async function holder(): Promise<Bun.Subprocess<'ignore', 'pipe', 'inherit'>> {
  const script = `
    const { lockStateDir } = await import(${JSON.stringify(join(import.meta.dir, 'lock.ts'))})
    lockStateDir(${JSON.stringify(dir)})
    console.log('held')
    setInterval(() => {}, 1000)`
  const child = Bun.spawn([process.execPath, '-e', script], { stdout: 'pipe', stdin: 'ignore' })
  children.push(child)
  const reader = child.stdout.getReader()
  expect(new TextDecoder().decode((await reader.read()).value)).toContain('held')
  return child
}

function refusal(): string {
  try {
    lockStateDir(dir).release()
    return 'was taken'
  } catch (error) {
    return (error as Error).message
  }
}

test('a second daemon is told who holds it', () => {
  const lock = lockStateDir(dir)
  expect(refusal()).toContain(`another daemon (pid ${process.pid}) uses`)
  expect(refusal()).toContain(`pid ${process.pid}`) // the refusal leaves it untouched
  expect((statSync(lock.path).mode & 0o777).toString(8)).toBe('600')
  lock.release()
  lock.release()
  const next = lockStateDir(dir)
  next.release()
})

test('a killed daemon holds nothing', async () => {
  const child = await holder()
  expect(refusal()).toContain(`pid ${child.pid}`)
  child.kill('SIGKILL')
  await child.exited
  const lock = lockStateDir(dir)
  expect(readFileSync(lock.path, 'utf8')).toBe(`${process.pid}\n`)
  lock.release()
})

test('a file that someone left there is no lock', () => {
  writeFileSync(join(dir, 'lock'), 'me\n')
  const lock = lockStateDir(dir)
  lock.release()
})
