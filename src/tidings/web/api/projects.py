"""/api/v1/project: the project that the key belongs to."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter

from tidings.directory import projects
from tidings.directory.projects import Project
from tidings.web.deps import Given, Reader
from tidings.web.fields import View

router = APIRouter(prefix="/project", tags=["project"])


class ProjectView(View):
    """A project."""

    key: str
    name: str
    created_at: datetime


@router.get("", response_model=ProjectView)
async def get_project(deps: Given, caller: Reader) -> Project:
    """The project of the API key."""
    return await projects.load_project(deps.database, caller.project_id)
