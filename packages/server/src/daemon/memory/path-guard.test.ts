import { afterAll, beforeAll, describe, expect, spyOn, test } from 'bun:test'
import { once } from 'node:events'
import { mkdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { type Library, openLibrary } from '@ckpt/cuda'
import { failure, LIBRARY, openFiles, TestDir } from '../registry/testing/fixture.ts'
import { PathGuard } from './path-guard.ts'

let dir: TestDir
let library: Library
let allowed: string
let secret: string

beforeAll(() => {
  dir = new TestDir()
  library = openLibrary(LIBRARY)
  allowed = join(dir.path, 'allowed')
  mkdirSync(join(allowed, 'sub'), { recursive: true })
  mkdirSync(join(dir.path, 'allowed-not'))
  secret = dir.write('secret', 'secret')
  writeFileSync(join(allowed, 'sub', 'inside'), 'inside')
  writeFileSync(join(dir.path, 'allowed-not', 'outside'), 'outside')
})

afterAll(() => dir.remove())

function read(guard: PathGuard, path: string): string {
  const { file, info } = guard.open(library, path)
  try {
    return new TextDecoder().decode(library.fileRead(file, 0, info.bytes))
  } finally {
    library.fileClose(file)
  }
}

describe('a path', () => {
  test('inside is opened, also through links and dots', () => {
    const guard = new PathGuard([allowed])
    const inside = join(allowed, 'sub', 'inside')
    expect(read(guard, inside)).toBe('inside')
    expect(read(guard, `${allowed}/sub/../sub/inside`)).toBe('inside')
    symlinkSync(inside, join(dir.path, 'link-in'))
    expect(read(guard, join(dir.path, 'link-in'))).toBe('inside')
    expect(guard.open(library, join(dir.path, 'link-in')).realPath).toBe(inside)
  })

  test('outside is refused, also through links and dots', async () => {
    const guard = new PathGuard([allowed])
    symlinkSync(secret, join(allowed, 'link-out'))
    symlinkSync(dir.path, join(allowed, 'dir-out'))
    // opening it fails, which would tell that it is there
    const socket = join(dir.path, 'socket')
    const server = createServer().listen(socket)
    await once(server, 'listening')
    const paths = [
      socket,
      secret,
      `${allowed}/../secret`,
      join(allowed, 'link-out'),
      join(allowed, 'dir-out', 'secret'),
      join(dir.path, 'allowed-not', 'outside'),
      dir.path,
    ]
    const descriptors = openFiles(dir.path)
    for (const path of paths) await failure(() => read(guard, path), 'path_not_allowed', path)
    expect(openFiles(dir.path)).toBe(descriptors)
    server.close()
  })

  test('that does not exist is told only inside', async () => {
    const guard = new PathGuard([allowed])
    await failure(() => read(guard, join(allowed, 'x', 'missing')), 'file_not_found')
    await failure(() => read(guard, join(dir.path, 'missing')), 'path_not_allowed')
    await failure(() => read(guard, '/missing/x'), 'path_not_allowed')
    await failure(() => read(guard, join(allowed, 'dir-out', 'missing')), 'path_not_allowed')
  })

  test('may be anywhere without a list; a link as an allowed directory is resolved', () => {
    expect(read(new PathGuard(null), secret)).toBe('secret')
    symlinkSync(allowed, join(dir.path, 'alias'))
    expect(read(new PathGuard([join(dir.path, 'alias')]), join(allowed, 'sub', 'inside'))).toBe(
      'inside',
    )
  })

  test('a file that is replaced while it is opened is refused, and nothing stays open', async () => {
    const path = join(allowed, 'replaced')
    writeFileSync(path, 'old')
    const before = [library.liveObjects(), openFiles(dir.path)]
    const fileOpen = library.fileOpen.bind(library)
    // comes between the look at the path and the library's own open
    using _late = spyOn(library, 'fileOpen').mockImplementationOnce((opened) => {
      renameSync(dir.write('next', 'new'), opened)
      return fileOpen(opened)
    })
    await failure(() => new PathGuard([allowed]).open(library, path), 'file_changed', path)
    expect([library.liveObjects(), openFiles(dir.path)]).toEqual(before)
  })

  test('a directory that becomes a link all the time never opens what is outside', async () => {
    const guard = new PathGuard([allowed])
    const flip = join(allowed, 'flip')
    const outside = join(dir.path, 'allowed-not')
    mkdirSync(flip)
    writeFileSync(join(flip, 'inside'), 'inside')
    writeFileSync(join(outside, 'inside'), 'SECRET')
    // another process, so that the change comes between any two system calls here
    const flips = `import os
while True:
    os.rename('${flip}', '${flip}.d'); os.symlink('${outside}', '${flip}')
    os.unlink('${flip}'); os.rename('${flip}.d', '${flip}')`
    const flipping = Bun.spawn(['python3', '-c', flips], { stdout: 'ignore', stderr: 'ignore' })
    const seen = new Map<string, number>()
    try {
      const start = Date.now()
      // on a busy machine the other process may begin late
      const both = () => seen.has('inside') && seen.has('path_not_allowed')
      for (let ms = 0; ms < 2000 || (ms < 30_000 && !both()); ms = Date.now() - start) {
        const outcome = outcomeOf(guard, join(flip, 'inside'))
        seen.set(outcome, (seen.get(outcome) ?? 0) + 1)
      }
    } finally {
      flipping.kill()
      await flipping.exited
    }
    expect(seen.get('SECRET')).toBeUndefined()
    expect(seen.get('inside')).toBeGreaterThan(0)
    expect(seen.get('path_not_allowed')).toBeGreaterThan(0)
  }, 40_000)
})

function outcomeOf(guard: PathGuard, path: string): string {
  try {
    return read(guard, path)
  } catch (error) {
    return (error as { code: string }).code
  }
}
