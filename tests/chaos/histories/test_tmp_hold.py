from tests.chaos.histories import world as wm
from tests.chaos.histories.moves import *
from tests.chaos.histories.world import World
from tests.chaos.histories.menu import Menu, Pick
import uuid, pytest
def req(graph, deadline=None):
    return Request(uuid.uuid4(), ("a","x"), graph, 3, 0, deadline, None, "enqueue")
@pytest.fixture
def w(stage, monkeypatch):
    monkeypatch.setattr(wm,"differences",lambda *a: []); monkeypatch.setattr(wm,"broken_promises",lambda *a: [])
    monkeypatch.setattr(World,"fail",lambda self, what: print("   !!", what))
    return World(stage)
def names(w): return {r.name:r for r in w.model.runs.values()}
def test_deadlock(w):
    m=Menu(w)
    w.do(Enqueue((req("skips"),req("holds",0.5))))
    r=names(w); p=w.processes[0]
    w.do(Claim(r["r1"].id,("a","x"),p.worker,False))
    w.do(Fail(r["r1"].id,1,("a","x"),"skips",Ending("failed","transient",0,spent=1),None))
    w.pass_time(1)
    w.do(m.expiry_of(r["r2"]))
    w.do(Claim(r["r1"].id,("a","x"),p.worker,False))
    w.do(RingAgain(100))
    w.do(Replay(r["r2"].id))
    w.do(Claim(r["r1"].id,("a","x"),p.worker,False))
    w.do(Claim(r["r2"].id,("a","x"),p.worker,False))
    w.pass_time(4); w.do(RingAgain(100))
    print("\n".join(w.history))
    print(w._stage.superuser.execute("select r.seq, r.status, l.status, t.held_by=l.id from runs r join threads t using (tenant, thread_id) left join dead_letters l on l.run_id=r.id order by 1").fetchall())
def test_overwritten(w):
    m=Menu(w)
    w.do(Enqueue((req("holds"),req("holds",0.5),req("skips"))))
    r=names(w); p=w.processes[0]
    w.do(Claim(r["r1"].id,("a","x"),p.worker,False))
    w.do(Fail(r["r1"].id,1,("a","x"),"holds",Ending("failed","permanent",spent=1),None))
    w.do(Claim(r["r3"].id,("a","x"),p.worker,False))
    w.pass_time(1)
    w.do(m.expiry_of(r["r2"]))
    w._picture = wm.look(w._stage.superuser)
    w.do(Discard(r["r2"].id))
    w.do(Claim(r["r3"].id,("a","x"),p.worker,False))
    print("\n".join(w.history))
    print(w._stage.superuser.execute("select r.seq, r.status, l.status, t.held_by from runs r join threads t using (tenant, thread_id) left join dead_letters l on l.run_id=r.id order by 1").fetchall())
def test_status(w):
    m=Menu(w)
    w.do(Enqueue((req("skips"),req("holds",0.5))))
    r=names(w); p=w.processes[0]
    w.do(Claim(r["r1"].id,("a","x"),p.worker,False))
    w.pass_time(1)
    w.do(m.expiry_of(r["r2"]))
    print("\n".join(w.history))
    print(w._stage.superuser.execute("select r.seq, r.status, t.status from runs r join threads t using (tenant, thread_id) order by 1").fetchall())
